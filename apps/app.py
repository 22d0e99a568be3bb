"""Start the browser app from a checkout: ``python apps/app.py``, as ``clip-randlora app`` does."""

from clip_randlora.cli import main

if __name__ == "__main__":
    import sys

    sys.argv.insert(1, "app")
    main()
