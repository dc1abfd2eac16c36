"""For launchers that start a module in several processes, such as torchrun and deepspeed."""

from llava_forgery.cli import main

if __name__ == "__main__":
    main()
