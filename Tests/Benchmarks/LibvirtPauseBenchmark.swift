import Foundation
import Glibc
import Libvirt
import Platform

/// The guest's pause and epochs a second through libvirt, service on two hosts, by the STOP and RESUME times in libvirt's monitor events;
/// and what the block job that guards the guest has to do with it.
enum LibvirtPauseBenchmark {
    static func run(_ bench: Bench) throws {
        let seconds = bench.quick ? 3.0 : 6.0
        let hosts = try TwoHosts(bench)
        try hosts.boot("ledger", image: "ledger")
        let events = try StopsAndResumes(hosts.connection("A"))
        defer { events.end() }
        func measure(_ seconds: Double) -> Distribution { Distribution(events.listen(seconds: seconds)) }

        var rows: [[String]] = []
        var json: [String: Any] = [:]
        for delay in [20, 5, 10, 100] {
            try hosts.protect("ledger", intervalMs: delay)
            let all = measure(seconds)
            let rate = Double(all.count) / seconds
            // Doubled while the shadow lags: then it is the peer or this machine that is too slow, not the pause.
            let used = try hosts.status("ledger")["interval_ms"] as? Double ?? .nan
            rows.append(["\(delay) ms", format(rate, 1), format(all.median), format(all.p99), format(used, 0)])
            json["\(delay)_ms"] = ["epochs_per_second": rate, "pause_ms_median": all.median, "pause_ms_p99": all.p99, "interval_used_ms": used]
            if delay == 10 { bench.target("epochs a second at 10 ms through libvirt", format(rate, 1), ">= 95", met: rate >= 95) }
            try hosts.shadowVirt("A", ["unprotect", "ledger"])
        }
        printTable("Guest pause and epochs a second through libvirt", ["interval", "epochs/s", "pause median ms", "p99 ms", "interval used ms"],
                   rows.sorted { (Int($0[0].split(separator: " ")[0]) ?? 0) < (Int($1[0].split(separator: " ")[0]) ?? 0) })
        bench.results["libvirt"] = json
        bench.results["guard"] = try guardShare(bench, hosts, measure)
    }

    /// The same protection with the service's own block job, without any, and with other kinds, in turn.
    private static func guardShare(_ bench: Bench, _ hosts: TwoHosts, _ measure: (Double) -> Distribution) throws -> [String: Any] {
        let kinds: [(name: String, xml: String?, ready: Bool)] = [
            ("the service's guard", nil, false),
            ("no block job", nil, false),
            ("1 byte/s, cache=unsafe", "<driver type='raw' cache='unsafe'/>", false),
            ("1 byte/s, cache=writeback", "<driver type='raw'/>", false),
            ("ready, cache=unsafe", "<driver type='raw' cache='unsafe'/>", true),
            ("ready, cache=writeback", "<driver type='raw'/>", true),
        ]
        let file = "\(bench.work)/guard.img"
        let disk = try hosts.on("A", ["virsh", "-q", "domblklist", "ledger"]).split(separator: " ").first.map { String($0) } ?? "vda"
        var found: [String: [Double]] = [:]
        try hosts.protect("ledger", intervalMs: 20)
        let domain = try hosts.connection("A").lookup(name: "ledger")
        for round in 0..<(bench.quick ? 1 : 3) {
            for (index, kind) in kinds.enumerated() {
                if index == 1, round == 0 { try domain.blockJobAbort(disk: disk) }
                if index == 0, round > 0 { continue }
                if let driver = kind.xml {
                    let bytes = try domain.blockInfo(disk: disk).capacity
                    let fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0o600)
                    ftruncate(fd, off_t(bytes))
                    close(fd)
                    try domain.blockCopy(disk: disk, destinationXML: "<disk type='file'><source file='\(file)'/>\(driver)</disk>",
                                         parameters: kind.ready ? [:] : ["bandwidth": .ulong(1)], flags: [.transientJob, .reuseExternal])
                    if kind.ready {
                        try waitFor("the copy", seconds: 20) {
                            guard let info = try domain.blockJobInfo(disk: disk) else { return false }
                            return info.end > 0 && info.current == info.end
                        }
                    }
                }
                let all = measure(bench.quick ? 2 : 3)
                found[kind.name, default: []] += [all.median, all.p99]
                if kind.xml != nil { try domain.blockJobAbort(disk: disk) }
                unlink(file)
            }
        }
        let without = median(found["no block job"], 0)
        printTable("The guard block job's share of the pause at 20 ms",
                   ["block job", "pause median ms", "p99 ms", "to none"],
                   kinds.map { [$0.name, format(median(found[$0.name], 0)), format(median(found[$0.name], 1)),
                                format(median(found[$0.name], 0) / without)] })
        _ = try? hosts.shadowVirt("A", ["unprotect", "ledger"])
        return found.mapValues { ["pause_ms_median": median($0, 0), "pause_ms_p99": median($0, 1)] }
    }

    /// The median over the rounds of what stands at `offset` of each pair.
    private static func median(_ values: [Double]?, _ offset: Int) -> Double {
        let values = values ?? []
        return Distribution(stride(from: offset, to: values.count, by: 2).map { values[$0] }).median
    }
}
