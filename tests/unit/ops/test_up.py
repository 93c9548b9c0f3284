"""`make up`: the variables that it reads, and the environment of its processes."""

from sessiond_ops.up import settings_from
from support.settings import COUNT, PORT, URL, assert_all_named


def test_one_line_names_all_errors() -> None:
    bad = {
        "SESSIOND_PORT": ("x", PORT),
        "WEBHOOK_PORT": ("0", PORT),
        "SESSIOND_URL": ("localhost", URL),
        "UP_HANDLERS": ("0", COUNT),
        "UP_WORKERS": ("two", COUNT),
    }
    assert_all_named(settings_from, {}, bad)


def test_the_processes_of_up_get_the_environment_and_missing_defaults() -> None:
    place = settings_from({"PATH": "/bin", "SESSIOND_STATE_DIR": "/s", "WEBHOOK_PORT": "81", "UP_WORKERS": "3"})
    assert (place.webhook_url, place.handlers, place.workers) == ("http://127.0.0.1:81", 2, 3)
    assert place.env == {
        "PATH": "/bin", "SESSIOND_STATE_DIR": "/s", "WEBHOOK_PORT": "81", "UP_WORKERS": "3", "OUTBOX_DIR": "/s/outbox",
        "SESSIOND_URL": "http://127.0.0.1:8420", "WEBHOOK_SECRET_FILE": "/s/webhook-secret",
    }  # fmt: skip
    assert settings_from({"OUTBOX_DIR": "/o", "WEBHOOK_SECRET": "x"}).env == {
        "OUTBOX_DIR": "/o", "WEBHOOK_SECRET": "x", "SESSIOND_STATE_DIR": ".state",
        "SESSIOND_URL": "http://127.0.0.1:8420",
    }  # fmt: skip
