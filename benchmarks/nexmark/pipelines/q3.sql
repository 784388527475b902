-- Who sells in three states in category 10. A person may come any time before or after the auction: a join without a bound.
CREATE OR REFRESH MATERIALIZED VIEW q3 REFRESH POLICY INCREMENTAL AS
SELECT p.name, p.city, p.state, a.id
FROM auction a JOIN person p ON a.seller = p.id
WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA');
