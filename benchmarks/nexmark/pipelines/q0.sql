-- Every bid as it is.
CREATE OR REFRESH STREAMING TABLE q0 AS
SELECT auction, bidder, price, "dateTime", extra
FROM STREAM read_files('${data}/bid', format => '${format}', schema => '${bid}');
