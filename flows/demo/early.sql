-- Joins the demo at its end: one more flow into a sink that has one. It reads all flights; the other does not begin anew.
CREATE FLOW early_departures AS INSERT INTO delay_alerts BY NAME
  SELECT 'early' AS kind, flight_date, carrier, flight, origin, dest, dep_delay
  FROM STREAM(silver.flights) WHERE dep_delay < -15;
