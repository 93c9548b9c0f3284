import pytest

pytest.register_assert_rewrite("store.histories", "store.owned", "store.puppet")
