-- One small change when nothing else goes on: a plane gets one seat more, or gives it back.
\set plane random(0, 3300)
UPDATE planes SET seats = seats + CASE WHEN random() < 0.5 THEN 1 ELSE -1 END
 WHERE tailnum = (SELECT tailnum FROM planes ORDER BY tailnum OFFSET :plane LIMIT 1);
