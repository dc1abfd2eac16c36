"""Print the table of hosts in docs/transformers.md from the records of hosts/families.py.

python scripts/make_host_table.py
"""

from llava_forgery.hosts.families import host_table


def main() -> None:
    print(host_table(), end="")


if __name__ == "__main__":
    main()
