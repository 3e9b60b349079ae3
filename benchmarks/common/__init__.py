"""What every measurement shares: clocks, pairs, machine facts, bases and rows, proofs of equal work, results."""
