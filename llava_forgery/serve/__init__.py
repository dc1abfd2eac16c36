"""A server and a page: verdicts and dialogues over HTTP."""
