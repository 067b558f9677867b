/* FreeIPMI's monitoring library: readings of a BMC's sensors and its event log, with its own judgement of what is normal. Bit masks and
 * offsets are what its events are classified by. */
#include <ipmi_monitoring.h>
#include <ipmi_monitoring_bitmasks.h>
#include <ipmi_monitoring_offsets.h>
