-- The average of the winning prices of each category: groups of groups over a join that each auction bounds for itself.
CREATE OR REFRESH MATERIALIZED VIEW q4_final REFRESH POLICY INCREMENTAL AS
SELECT a.id, a.category, max(b.price) AS final
FROM auction a JOIN bid b ON a.id = b.auction AND b."dateTime" BETWEEN a."dateTime" AND a.expires
GROUP BY a.id, a.category;

CREATE OR REFRESH MATERIALIZED VIEW q4 REFRESH POLICY INCREMENTAL AS
SELECT category, avg(final) AS average, count(*) AS auctions FROM q4_final GROUP BY category;
