"""Win rates with intervals, agreement, reward-model accuracy; the report and the table that show them."""
