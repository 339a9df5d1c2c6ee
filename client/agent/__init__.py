"""The site's agent: the long-lived process that the site owns, and the courier's way to it."""
