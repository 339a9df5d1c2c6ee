"""The client: the site seam, the trainer and the Flower ClientApp."""
