"""The main job: datacenters that take writes, lose one of them, carry on, and become equal again.

run.py        the phases, in order            journal.py   what clients were told, and the verdict on it
workload.py   clients in every datacenter     replicas.py  every replica, asked by itself
lag.py        samples of the lag              report.py    the report, for people and for programs
"""
