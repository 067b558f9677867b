import ControlProtocol
import Foundation
import Glibc
import Libvirt

/// What `doctor` on the primary's host wants to know of the shadow's: changes nothing.
extension ReplicaProvisioner {
    func findings(_ requests: [ReplicaRequest], media: [MediaRequest], _ terms: Terms) -> [Finding] {
        var terms = terms
        terms.startsPools = false
        var findings = media.compactMap { missing($0)?.finding }
        var wanted: [String: (pool: StoragePool, description: PoolDescription, requests: [ReplicaRequest])] = [:]
        // One at a time: each disk gets its own line.
        for request in requests {
            do {
                guard let assessment = try assess([request], terms).first else { continue }
                switch assessment.action {
                case .create(let pool, let description), .replace(_, let pool, let description):
                    wanted[pool.name, default: (pool, description, [])].requests.append(request)
                case .take(let path, _):
                    findings.append(Finding("replica-\(request.target)", .ok, "\(path) on \(host) becomes the replica of disk \(request.target) again"))
                }
            } catch let inactive as InactivePool {
                findings.append(Finding("replica-\(request.target)", .warning, "Storage pool \(inactive.name) on \(host) is inactive, so nobody can look into it now",
                                        advice: "`protect` starts it; to see more, `virsh pool-start \(inactive.name)` there"))
            } catch let failure as ControlFailure {
                findings.append(Finding("replica-\(request.target)", .failed, failure.message, advice: failure.advice))
            } catch {
                findings.append(Finding("replica-\(request.target)", .failed, "\(host): \(error)"))
            }
        }
        for (name, want) in wanted.sorted(by: { $0.key < $1.key }) {
            let available = Self.available(want.pool, want.description)
            findings.append(Self.space(pool: name, host: host, available: available, want.requests, isThick: want.description.allocation(capacity: 1) > 0))
        }
        return findings
    }

    /// Bytes that are free now: libvirt's figure is that of the pool's last refresh.
    private static func available(_ pool: StoragePool, _ description: PoolDescription) -> UInt64 {
        var info = statvfs()
        guard description.hasFiles, let folder = description.targetPath, statvfs(folder, &info) == 0 else { return (try? pool.info().available) ?? 0 }
        return UInt64(info.f_bavail) * UInt64(info.f_frsize)
    }

    /// Whether new replicas find room. A sparse one begins with what its source takes, and may grow to its capacity.
    static func space(pool: String, host: String, available: UInt64, _ requests: [ReplicaRequest], isThick: Bool) -> Finding {
        let capacity = requests.reduce(0) { $0 + $1.capacityBytes }
        let allocation = isThick ? capacity : requests.reduce(0) { $0 + $1.allocationBytes }
        let targets = requests.map(\.target).joined(separator: ", ")
        let room = "\(available >> 20) MiB free in pool \(pool) of \(host)"
        if allocation > available {
            return Finding("pool-\(pool)", .failed, "\(room), the replicas of \(targets) need \(allocation >> 20) MiB", advice: "Free space there, or name another pool with --pool")
        }
        if capacity > available {
            return Finding("pool-\(pool)", .warning, "\(room), the replicas of \(targets) may grow to \(capacity >> 20) MiB",
                           advice: "When it is full the shadow cannot follow; the guest runs on")
        }
        return Finding("pool-\(pool)", .ok, room)
    }
}
