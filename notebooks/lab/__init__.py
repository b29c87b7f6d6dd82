"""The notebooks' bench: experiments, clients, laws and figures."""
