"""The other host: the same machines in virtual time, on a network, disks and clocks that one seed makes misbehave."""
