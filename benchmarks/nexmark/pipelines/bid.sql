CREATE OR REFRESH STREAMING TABLE bid AS
SELECT * EXCLUDE (_rescued_data) FROM STREAM read_files('${data}/bid', format => '${format}', schema => '${bid}');
