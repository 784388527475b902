SELECT * FROM bid
QUALIFY row_number() OVER (PARTITION BY bidder, auction ORDER BY "dateTime" DESC, price DESC, extra DESC) = 1
