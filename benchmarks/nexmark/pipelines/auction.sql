CREATE OR REFRESH STREAMING TABLE auction AS
SELECT * EXCLUDE (_rescued_data) FROM STREAM read_files('${data}/auction', format => '${format}', schema => '${auction}');
