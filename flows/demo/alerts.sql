-- Joins the demo while its pipeline is down: a sink, and a flow into it that begins with the first flight.
-- ${alert_delay} is a parameter: of the spec, or of --param.
CREATE SINK delay_alerts (CONSTRAINT is_named EXPECT (carrier IS NOT NULL) ON VIOLATION QUARANTINE)
  FORMAT kafka
  COMMENT 'Flights that somebody should hear of, as JSON on a topic'
  OPTIONS (bootstrap_servers = '${bootstrap_servers}', topic = 'delay-alerts', key = 'carrier', headers.kind = 'kind');

CREATE FLOW late_departures AS INSERT INTO delay_alerts BY NAME
  SELECT 'late' AS kind, flight_date, carrier, flight, origin, dest, dep_delay
  FROM STREAM(silver.flights) WHERE dep_delay > ${alert_delay};
