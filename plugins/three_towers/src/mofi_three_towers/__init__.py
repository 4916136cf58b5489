"""Three Towers (Kossen et al., arXiv 2305.16999) as an objective of mofi-lightning."""

from mofi_three_towers.objective import ThreeTowers

__all__ = ["ThreeTowers"]
