"""Schedules that are searched for or solved for, and bounds on what any schedule can reach."""
