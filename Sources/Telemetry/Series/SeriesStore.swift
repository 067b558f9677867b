import Foundation
import Glibc
import Platform

/// All series of this host, a folder each: `host`, and the UUID of each domain.
public final class SeriesStore: @unchecked Sendable {
    public static let host = "host"
    /// Series of domains that were not heard of for so long are removed.
    private static let keepDays = 7.0
    private static let mostSubjects = 1024

    public let folder: String
    private let ceiling: Int
    private let series = Guarded<[String: Series]>([:])
    private let isFailing = Guarded(false)

    /// `folder`: of its own below the state folder. `ceiling`: bytes of each series.
    public init(folder: String, ceiling: Int = Series.defaultCeiling) {
        self.folder = folder
        self.ceiling = ceiling
    }

    /// Adds a sample. What cannot be written is said once and left out: the disk may be full, and the guests matter more.
    public func append(_ sample: Sample, to subject: String, label: String) {
        do {
            try subjectSeries(subject).append(sample, label: label)
            isFailing.change { $0 = false }
        } catch {
            if isFailing.change({ failing in
                defer { failing = true }
                return !failing
            }) { Log.warning("Telemetry cannot be kept in \(folder): \(error). Make room there; what is measured meanwhile is not in `kpi`") }
        }
    }

    public func rows(of subject: String, since: UInt64, mostValues: Int) throws -> Series.Rows {
        // Another object than the writer's: it holds no state that reading needs.
        try Series(folder: path(subject), ceiling: ceiling).rows(since: since, mostValues: mostValues)
    }

    /// Subjects by folder name; the label of each that has the wanted one.
    public func subject(labelled label: String) -> String? {
        subjects.first { subject in
            subject != Self.host && (try? Series(folder: path(subject)).rows(since: .max, mostValues: 0).label) == label
        }
    }

    public var subjects: [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).filter { $0 == Self.host || UUID(uuidString: $0) != nil }.sorted()
    }

    public func has(_ subject: String) -> Bool { !Series.names(in: path(subject)).isEmpty }

    /// Removes what belongs to one domain.
    public func remove(_ subject: String) {
        series.change { $0[subject] = nil }
        try? FileManager.default.removeItem(atPath: path(subject))
    }

    /// Removes what belongs to domains of long ago.
    public func prune() {
        let now = Date()
        let dated = subjects.filter { $0 != Self.host }.map { subject -> (String, Date) in
            let newest = Series.names(in: path(subject)).last.flatMap {
                try? FileManager.default.attributesOfItem(atPath: "\(path(subject))/\($0)")[.modificationDate] as? Date
            }
            return (subject, newest ?? .distantPast)
        }.sorted { $0.1 > $1.1 }
        for (place, (subject, date)) in dated.enumerated() where place >= Self.mostSubjects || now.timeIntervalSince(date) > Self.keepDays * 86_400 {
            series.change { $0[subject] = nil }
            try? FileManager.default.removeItem(atPath: path(subject))
        }
    }

    private func path(_ subject: String) -> String { "\(folder)/\(subject)" }

    private func subjectSeries(_ subject: String) -> Series {
        series.change { series in
            if let known = series[subject] { return known }
            let fresh = Series(folder: path(subject), ceiling: ceiling)
            series[subject] = fresh
            return fresh
        }
    }
}
