"""TAO's side of a stage, for any of its networks. Python 3.8, standard library only: it runs inside NVIDIA's image."""
