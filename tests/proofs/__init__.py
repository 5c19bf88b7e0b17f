"""The claims of the product that others attacked, each as a test that failed before."""
