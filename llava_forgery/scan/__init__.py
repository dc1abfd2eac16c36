"""Archives: any number of photographs and videos, judged on Ray Data into Parquet files."""
