/// A part of the answer to `kpi`, by columns: some thousand samples of a hundred KPIs would not fit on one line otherwise.
public struct KPIPage: Codable, Sendable, Equatable {
    public var schema = ControlProtocolVersion.schema
    /// Where it was measured.
    public var host: String
    /// Nil: the samples are the host's.
    public var domain: String?
    public var uuid: String?
    /// Between two samples; 0: nothing is measured at the moment.
    public var intervalSeconds: Int
    /// KPI names; those of a domain begin with `p_` (its primary's side) or `s_` (its shadow's).
    public var columns: [String]
    /// Of each row, milliseconds since 1970.
    public var times: [UInt64]
    /// By row, then by column; nil, or missing at the end: absent.
    public var rows: [[Double?]]
    /// There are later samples than the last one here: ask for those after it.
    public var hasMore: Bool

    enum CodingKeys: String, CodingKey {
        case schema, host, domain, uuid, columns, times, rows
        case intervalSeconds = "interval_seconds"
        case hasMore = "has_more"
    }

    public init(host: String, domain: String? = nil, uuid: String? = nil, intervalSeconds: Int, columns: [String] = [], times: [UInt64] = [],
                rows: [[Double?]] = [], hasMore: Bool = false) {
        self.host = host
        self.domain = domain
        self.uuid = uuid
        self.intervalSeconds = intervalSeconds
        self.columns = columns
        self.times = times
        self.rows = rows
        self.hasMore = hasMore
    }
}
