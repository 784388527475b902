-- The winning bid of each auction: the best row of each partition of a join.
CREATE OR REFRESH MATERIALIZED VIEW q9 REFRESH POLICY INCREMENTAL AS
SELECT a.*, b.auction, b.bidder, b.price, b."dateTime" AS "bid_dateTime", b.extra AS bid_extra
FROM auction a JOIN bid b ON a.id = b.auction AND b."dateTime" BETWEEN a."dateTime" AND a.expires
QUALIFY row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b."dateTime", b.bidder, b.extra) = 1;
