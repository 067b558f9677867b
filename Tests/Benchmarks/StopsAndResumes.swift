import Glibc
import Libvirt
import Platform

/// Listens to QEMU's STOP and RESUME events of one host, with QEMU's own times, by way of libvirt.
final class StopsAndResumes {
    private let events = Guarded<[(name: String, at: Double)]>([])
    private let subscription: EventSubscription

    init(_ connection: Connection) throws {
        let events = self.events
        subscription = try connection.onMonitorEvent(event: "^(STOP|RESUME)$", filter: .regex) { event in
            events.change { $0.append((event.name, Double(event.seconds) + Double(event.microseconds) / 1e6)) }
        }
    }

    func end() { subscription.cancel() }

    /// The guest's pauses in the next `seconds`, in milliseconds, once what is beginning now has settled.
    func listen(seconds: Double) -> [Double] {
        usleep(700_000)
        events.change { $0 = [] }
        usleep(UInt32(seconds * 1e6))
        return pauses(events.read { $0 })
    }
}
