"""`python -m sessiond_webhook`: the ingress. The exit status is 2, with one line, if a setting is not valid."""

import argparse
import sys

from sessiond_common.env import SettingsError
from sessiond_webhook.ingress.settings import from_env


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="webhook", description="Accept GitHub's deliveries.")
    parser.add_argument("--check", action="store_true", help="check the settings and exit")
    options = parser.parse_args(argv)
    try:
        settings = from_env()
    except SettingsError as error:
        print(f"webhook: {error}", file=sys.stderr)
        return 2
    if options.check:
        print("webhook: the settings are valid")
        return 0
    from sessiond_webhook.ingress.server import serve

    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
