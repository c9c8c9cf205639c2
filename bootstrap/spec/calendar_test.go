package spec

import "testing"

func TestCalendarFault(t *testing.T) {
	for _, good := range []string{
		"daily", "hourly UTC", "*-*-* 02:30:00", "02:30", "Mon..Fri 02:30", "Sat,Sun *-*-* 00/6:00:00", "Mon *-*-1..7 03:00 Europe/Berlin",
		"*-*-* *:0/15:00", "2027-01-01 00:00:00", "*-02~3 01:00 UTC", "quarterly", "monday 04:00",
	} {
		if fault := calendarFault(good); fault != "" {
			t.Errorf("%q %s", good, fault)
		}
	}
	for _, bad := range []string{"", "dayly", "nonsense", "every day", "daily 02:30", "at noon", "02:30\nExecStart=/bin/sh", "0 2 * * *"} {
		if calendarFault(bad) == "" {
			t.Errorf("%q passes", bad)
		}
	}
}
