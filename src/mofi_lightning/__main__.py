"""`python -m mofi_lightning` is the command `mofi`."""

from mofi_lightning.cli import main

if __name__ == "__main__":
    main()
