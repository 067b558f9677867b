import ControlProtocol
import Foundation
import Glibc
import Platform

/// The service itself: its release, what it counted, what it takes from the host.
public enum ServiceMetrics {
    typealias Sample = MetricFamily.Sample
    typealias Label = MetricFamily.Label

    /// `events`: how many of each kind since the service began.
    public static func families(_ status: StatusReport, events: [EventKind: UInt64], libvirtIsConnected: Bool) -> [MetricFamily] {
        [
            MetricFamily("shadowvirt_build_info", .gauge, "1; the release of the service, and the host's name", [
                Sample(1, labels: [Label("version", status.version), Label("host", status.host)]),
            ]),
            MetricFamily("shadowvirt_libvirt_connected", .gauge, "1: the service is connected to libvirt", [Sample(libvirtIsConnected ? 1 : 0)]),
            MetricFamily("shadowvirt_events_total", .counter, "Entries of `shadow-virt events` since the service began",
                         events.sorted { $0.key.rawValue < $1.key.rawValue }.map { Sample(Double($0.value), labels: [Label("kind", $0.key.rawValue)]) }),
        ] + process()
    }

    /// Of this process, under the names that every Prometheus client library gives them. Its workers are processes of their own.
    static func process() -> [MetricFamily] {
        // The name in parentheses may hold anything.
        let fields = ((try? kernelText("/proc/self/stat"))?.split(separator: ")").last?.split(separator: " ") ?? []).map { Double($0) ?? 0 }
        guard fields.count > 21 else { return [] }
        // proc(5), counted from 3, the state: 14 and 15 are ticks in user and kernel mode, 22 the start in ticks after boot, 23 bytes, 24 pages.
        let ticks = Double(max(1, sysconf(Int32(_SC_CLK_TCK)))), page = Double(sysconf(Int32(_SC_PAGESIZE)))
        var families = [
            MetricFamily("process_cpu_seconds_total", .counter, "User and system CPU time of the service", [Sample((fields[11] + fields[12]) / ticks)]),
            MetricFamily("process_resident_memory_bytes", .gauge, "Resident memory of the service", [Sample(fields[21] * page)]),
            MetricFamily("process_virtual_memory_bytes", .gauge, "Virtual memory of the service", [Sample(fields[20])]),
            MetricFamily("process_open_fds", .gauge, "Open file descriptors of the service", [Sample(Double(openDescriptors(of: getpid()).count))]),
        ]
        var limit = rlimit()
        if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
            families.append(MetricFamily("process_max_fds", .gauge, "Limit of the service's open file descriptors", [Sample(Double(limit.rlim_cur))]))
        }
        if let boot = bootTime {
            families.append(MetricFamily("process_start_time_seconds", .gauge, "When the service began, as Unix time", [Sample(boot + fields[19] / ticks)]))
        }
        return families
    }

    private static let bootTime: Double? = {
        guard let line = try? kernelText("/proc/stat").split(separator: "\n").first(where: { $0.hasPrefix("btime ") }) else { return nil }
        return Double(line.dropFirst("btime ".count))
    }()
}
