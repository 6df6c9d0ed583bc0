"""Several datacenters on one machine: real nodes as child processes, with a WAN of proxies between them.

ports.py       free ports, reserved across processes       state.py       the lab directory and its state file
process.py     one node as a child process                 supervisor.py  the process that `geokv lab up` leaves
lab.py         nodes + proxies + topology: a whole lab     ask.py         one request to one node
wan/           the proxies and links                       demo/          the main job
"""
