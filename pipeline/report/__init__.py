"""The report: a run's folders come in, one HTML page goes out.

Called by the stage `report`.
"""
