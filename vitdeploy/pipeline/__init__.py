"""The steps from a recipe to an artifact: prepare the graph, lower candidates, choose one, compile and audit it."""
