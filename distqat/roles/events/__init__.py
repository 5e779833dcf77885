"""What roles tell of themselves as events: the client of its plan (`minutes`), a pipeline's trainer (`chronicle`); and
how events cross the wire (`messages`). An expert's are beside the other traces of its rounds (`roles/journal.py`).
"""
