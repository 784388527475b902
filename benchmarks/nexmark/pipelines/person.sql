CREATE OR REFRESH STREAMING TABLE person AS
SELECT * EXCLUDE (_rescued_data) FROM STREAM read_files('${data}/person', format => '${format}', schema => '${person}');
