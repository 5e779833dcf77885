"""Scripts that run in the environment of a peer (`bench/hivemind.py`), and so import nothing of distqat.

A script answers the methods of one object until the bench hangs up:

    class Codecs:
        def encode(self, name: str) -> float: ...

    if __name__ == "__main__":
        answer(Codecs())        # bench.peers.answering
"""
