"""The WAN of the lab: proxies between datacenters, and links made of them that can be slowed, cut and
healed.
"""
