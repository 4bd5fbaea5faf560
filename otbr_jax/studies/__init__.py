"""What is run of methods and victims: repairs, benches, comparisons. See `study.Study`."""
