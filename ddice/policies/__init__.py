"""Policies: acting, engines that act faster, export, and evaluation in an environment."""
