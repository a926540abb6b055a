"""One file per named data set; the table is `duotune.data.DATASETS`."""
