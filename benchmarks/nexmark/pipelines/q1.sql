-- Prices in another currency.
CREATE OR REFRESH STREAMING TABLE q1 AS
SELECT auction, bidder, 0.908 * price AS price, "dateTime", extra
FROM STREAM read_files('${data}/bid', format => '${format}', schema => '${bid}');
