"""The runs of a study: the ledger, the schedule, the coordinator and its workers."""
