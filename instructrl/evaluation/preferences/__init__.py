"""Who is preferred to whom: win rates, length-controlled ones, ratings of many models, and judges beside people."""
