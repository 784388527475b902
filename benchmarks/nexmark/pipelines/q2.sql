-- Bids for every 123rd auction.
CREATE OR REFRESH STREAMING TABLE q2 AS
SELECT auction, price
FROM STREAM read_files('${data}/bid', format => '${format}', schema => '${bid}')
WHERE auction % 123 = 0;
