"""`python -m benchmarks.micro`."""

from benchmarks.micro.command import main

if __name__ == "__main__":
    main()
