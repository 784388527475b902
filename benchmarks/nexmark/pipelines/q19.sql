-- The ten highest bids of each auction.
CREATE OR REFRESH MATERIALIZED VIEW q19 REFRESH POLICY INCREMENTAL AS
SELECT *, row_number() OVER (PARTITION BY auction ORDER BY price DESC, "dateTime", bidder, extra) AS rank_number
FROM bid
QUALIFY rank_number <= 10;
