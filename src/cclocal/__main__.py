"""`cclocal` and `python -m cclocal`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # until the command line is loaded Ctrl-C ends the process, without a traceback of whatever was being imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cclocal.cli.main import main

if __name__ == "__main__":
    main()
